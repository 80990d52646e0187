// Package bench measures the service against bare net/http under a client that saturates both. Its
// test needs the build tag bench.
package bench
