package main

import (
	"encoding/json"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// info is the service's response to GET /, written as people write it.
type info struct {
	Service struct {
		Name        string `json:"name"`
		Version     string `json:"version"`
		Description string `json:"description"`
		Framework   string `json:"framework"`
	} `json:"service"`
	System struct {
		Hostname        string   `json:"hostname"`
		Platform        string   `json:"platform"`
		PlatformVersion string   `json:"platform_version"`
		Architecture    string   `json:"architecture"`
		CPUCount        int      `json:"cpu_count"`
		GoVersion       string   `json:"go_version"`
		CPULimit        *float64 `json:"cpu_limit"`
		MemoryLimit     *int64   `json:"memory_limit_bytes"`
	} `json:"system"`
	Runtime struct {
		UptimeSeconds int64  `json:"uptime_seconds"`
		UptimeHuman   string `json:"uptime_human"`
		CurrentTime   string `json:"current_time"`
		Timezone      string `json:"timezone"`
	} `json:"runtime"`
	Request struct {
		ClientIP  string `json:"client_ip"`
		UserAgent string `json:"user_agent"`
		Method    string `json:"method"`
		Path      string `json:"path"`
	} `json:"request"`
	Endpoints []struct {
		Path        string `json:"path"`
		Method      string `json:"method"`
		Description string `json:"description"`
	} `json:"endpoints"`
}

type health struct {
	Status        string `json:"status"`
	Timestamp     string `json:"timestamp"`
	UptimeSeconds int64  `json:"uptime_seconds"`
}

// handlePlain registers the plain handlers. What does not change in the response to / is taken from root.
func handlePlain(root string) {
	var constant info
	decoder := json.NewDecoder(strings.NewReader(root))
	decoder.DisallowUnknownFields() // the plain handler must not do less than the service
	if err := decoder.Decode(&constant); err != nil {
		log.Fatalf("ROOT: %v", err)
	}
	start := time.Now()
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)))

	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		response := constant
		response.Runtime.UptimeSeconds = int64(now.Sub(start).Seconds())
		response.Runtime.UptimeHuman = now.Sub(start).Truncate(time.Second).String()
		response.Runtime.CurrentTime = now.Format(timeLayout)
		response.Request.ClientIP, _, _ = net.SplitHostPort(r.RemoteAddr)
		response.Request.UserAgent = r.UserAgent()
		response.Request.Method = r.Method
		response.Request.Path = r.URL.Path
		encode(w, response)
		slog.Info("request", "method", r.Method, "path", r.URL.Path, "status", 200, "bytes", len(root),
			"duration_ms", float64(time.Since(now).Microseconds())/1000,
			"client_ip", response.Request.ClientIP, "user_agent", r.UserAgent())
	})
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		encode(w, health{"healthy", now.UTC().Format(timeLayout), int64(now.Sub(start).Seconds())})
	})
}

func encode(w http.ResponseWriter, response any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(response)
}
