// Floor is what the service is measured against. By itself it is bare net/http, the least that a server can do for
// the same bytes under the same timeouts: it answers / and /health with the constants ROOT and HEALTH on the
// port PORT. With PLAIN it is a plain handler, which gives the same answers and logs the same line.
package main

import (
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	root, health := os.Getenv("ROOT"), os.Getenv("HEALTH")
	if os.Getenv("PLAIN") != "" {
		handlePlain(root)
	} else {
		http.HandleFunc("/", constant(root))
		http.HandleFunc("/health", constant(health))
	}
	listener, err := net.Listen("tcp", ":"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{
		ReadTimeout:  5 * time.Second,
		WriteTimeout: 10 * time.Second,
		IdleTimeout:  620 * time.Second,
	}
	log.Fatal(server.Serve(listener))
}

func constant(response string) http.HandlerFunc {
	body := []byte(response)
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }
}
