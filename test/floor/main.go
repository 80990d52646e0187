// Floor is the least that net/http can do for the same bytes under the same timeouts: make bench
// measures the service against it. It answers / and /health with the constants ROOT and HEALTH on
// the port PORT.
package main

import (
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	for path, response := range map[string][]byte{"/": []byte(os.Getenv("ROOT")), "/health": []byte(os.Getenv("HEALTH"))} {
		response := response
		http.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.Write(response) })
	}
	listener, err := net.Listen("tcp", ":"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       60 * time.Second,
	}
	log.Fatal(server.Serve(listener))
}
