package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// oneByOne makes a new connection for every request, straight to where it goes.
var oneByOne = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// ask makes one request and returns the pid of the worker that answered. A worker that saw another address than the one our
// socket has is an error.
func ask(ctx context.Context, url string) (pid int, err error) {
	var local string
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) { local = c.Conn.LocalAddr().String() },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := oneByOne.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var seen string
	if _, err := fmt.Sscan(string(body), &pid, &seen); err != nil {
		return 0, fmt.Errorf("answer %q: %w", body, err)
	}
	if seen != local {
		return 0, fmt.Errorf("worker %d saw %s for a client at %s", pid, seen, local)
	}
	return pid, nil
}

// askMany makes n requests, some of them at the same time, and returns how many each worker answered. Any error is one too many.
func askMany(ctx context.Context, url string, n, atOnce int) (map[int]int, error) {
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		served = map[int]int{}
		failed []error
		turns  = make(chan struct{}, atOnce)
	)
	for range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			pid, err := ask(ctx, url)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			served[pid]++
		})
	}
	all.Wait()
	if len(failed) > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the first by: %w", len(failed), n, failed[0])
	}
	return served, nil
}
