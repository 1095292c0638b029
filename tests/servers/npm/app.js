// An application of Express that knows nothing of serverswap.

const app = require('express')();

app.get('/', (request, response) => response.send(`${process.env.SERVERSWAP_GENERATION} ${process.pid}\n`));
app.listen(Number(process.env.PORT));
