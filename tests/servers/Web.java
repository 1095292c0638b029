import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/**
 * A server that knows nothing of serverswap: no handler for signals, no control channel. Argument: a port. What is posted
 * is repeated. The answer to /ill has status 500.
 */
public class Web {
    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(arguments[0])), 0);
        String who = System.getenv("SERVERSWAP_GENERATION") + " " + ProcessHandle.current().pid() + " ";
        server.createContext("/", exchange -> {
            String posted = new String(exchange.getRequestBody().readAllBytes());
            byte[] answer = (who + posted + "\n").getBytes();
            boolean ill = exchange.getRequestURI().getPath().equals("/ill");
            exchange.sendResponseHeaders(ill ? 500 : 200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }
}
