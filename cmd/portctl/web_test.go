package main

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

// webMain is a web server by HTTPS: "web ADDR DIR" serves the files of DIR with the day of 2026-08-18, and what goes wrong
// with others below. Its certificate is in ca.pem; every request is told.
func webMain() {
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fail("%v", err)
	}
	dir := os.Args[2]
	day := time.Date(2026, 8, 18, 4, 5, 6, 0, time.UTC)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(dir + r.URL.Path)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		w.Header().Set("ETag", `"first"`)
		http.ServeContent(w, r, r.URL.Path, day, f)
	})
	mux.HandleFunc("/odd", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", "\"\xff\u202e\"")
		w.Header().Set("Last-Modified", strings.Repeat("x", 1000))
		file, _ := os.ReadFile(dir + "/registry.csv")
		_, _ = w.Write(file)
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/registry.csv", http.StatusFound) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/registry.csv", http.StatusFound)
	})
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintln(w, "<!DOCTYPE html><title>Log in first</title>")
	})
	mux.HandleFunc("/disguised", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/csv")
		fmt.Fprintln(w, "<!DOCTYPE html><title>Log in first</title>")
	})
	mux.HandleFunc("/kill", func(w http.ResponseWriter, r *http.Request) { // portd, before it gets the file
		text, _ := os.ReadFile(dir + "/pid")
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			http.Error(w, "whom?", http.StatusInternalServerError)
			return
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		http.ServeFile(w, r, dir+"/registry.csv")
	})
	mux.HandleFunc("/truncated", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		fmt.Fprint(w, "Service Name,Port Number")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/announced", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(ianadb.MaxFile+1))
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		line := []byte(strings.Repeat("x", 1<<16))
		for r.Context().Err() == nil {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "Service Name,")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := ""
		if r.Header.Get("If-None-Match") != "" && r.Header.Get("If-Modified-Since") != "" {
			asked = " if modified"
		}
		if from := r.Referer(); from != "" {
			asked += " from " + from
		}
		fmt.Printf("asked for %s%s\n", r.URL.Path, asked)
		mux.ServeHTTP(w, r)
	}))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.StartTLS()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile("ca.pem", ca, 0o644); err != nil {
		fail("%v", err)
	}
	fmt.Println("serving", srv.URL)
	select {}
}
