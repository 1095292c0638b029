// A server that knows nothing of serverswap: no handler for signals, no control channel. Arguments: an
// address; then perhaps the milliseconds that every answer takes. What is posted is repeated.
// The answer to /ill has status 500.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	slow := 0
	if len(os.Args) > 2 {
		slow, _ = strconv.Atoi(os.Args[2])
	}
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		time.Sleep(time.Duration(slow) * time.Millisecond)
		posted, _ := io.ReadAll(request.Body)
		if request.URL.Path == "/ill" {
			response.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(response, "%s %d %s\n", os.Getenv("SERVERSWAP_GENERATION"), os.Getpid(), posted)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Args[1], nil))
	os.Exit(1)
}
