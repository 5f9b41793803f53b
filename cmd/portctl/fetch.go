package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

// A fetch is what a web server is asked for: a registry file, if it is another than the one that answers.
type fetch struct {
	url                string
	lastModified, etag string // as the server said them of the one that answers; empty: any is wanted
	timeout            time.Duration
}

// fetched is a file as the server sent it, and what it said of it: to be said again when it is asked for changes. When a server
// got a file is not of when the registry is.
type fetched struct {
	body               io.Reader
	lastModified, etag string
}

var errNotModified = errors.New("not modified")

const maxRedirects = 5

// checkURL returns the URL as it is asked for and kept: what is before the host and after # does not belong to it.
func checkURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", usagef("--url: %v", err)
	case u.Scheme == "http":
		u.Scheme = "https"
		return "", try(usagef("--url %s: what comes over http anybody on the way could have changed; only https is fetched", text), "portctl import --url "+u.String())
	case u.Scheme != "https" || u.Hostname() == "":
		return "", try(usagef("--url %q is no https URL", text), "portctl import --url "+ianaXML)
	case u.User != nil:
		return "", usagef("--url: a password does not belong in there: the URL is kept, and shown to everybody by portctl status")
	}
	u.Fragment = ""
	if !isPlain(u.String()) {
		return "", usagef("--url %q: in a URL, what is not ASCII is written as %%XX (RFC 3986)", text)
	}
	return u.String(), nil
}

// isPlain says whether s can go wherever it likes: into a header, a message, a terminal.
func isPlain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

const maxValidator = 256 // bytes; those of servers have some dozens

// validator is what a server said of a file by which it can be asked for changes. One that portd could not keep is none.
func validator(h http.Header, name string) string {
	if v := h.Get(name); len(v) <= maxValidator && isPlain(v) {
		return v
	}
	return ""
}

// fetch gets all of a file before any of it is used. Its error is errNotModified where the server has nothing newer.
func (c *ctl) fetch(ctx context.Context, ask fetch) (*fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, ask.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask.url, nil)
	if err != nil {
		return nil, usagef("--url: %v", err)
	}
	req.Header.Set("User-Agent", "portctl")
	// By hand, for then the length that the server says is that of what comes; it is unpacked as any gzipped file is.
	req.Header.Set("Accept-Encoding", "gzip")
	if ask.lastModified != "" {
		req.Header.Set("If-Modified-Since", ask.lastModified)
	}
	if ask.etag != "" {
		req.Header.Set("If-None-Match", ask.etag)
	}
	web := http.Client{Transport: http.DefaultTransport, CheckRedirect: onlyHTTPS}
	resp, err := web.Do(req)
	if err != nil {
		return nil, ask.failed(err)
	}
	defer resp.Body.Close()
	asked := ask.lastModified != "" || ask.etag != ""
	switch mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); {
	case resp.StatusCode == http.StatusNotModified && asked:
		return nil, errNotModified
	case resp.StatusCode != http.StatusOK:
		return nil, ask.hint("the server answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case mediaType == "text/html", mediaType == "application/xhtml+xml":
		return nil, ask.hint("the server sends a web page (%s), not a registry", mediaType)
	case resp.ContentLength > ianadb.MaxFile:
		return nil, ask.hint("the server announces %d bytes, and a registry has at most %d MiB", resp.ContentLength, ianadb.MaxFile>>20)
	}
	bar := c.progress(resp.ContentLength)
	body, err := io.ReadAll(io.TeeReader(io.LimitReader(resp.Body, ianadb.MaxFile+1), bar))
	_ = bar.Close()
	if ctx.Err() != nil { // a server that is told so may still end its answer as if it were whole
		err = ctx.Err()
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && resp.ContentLength > 0:
		return nil, ask.hint("cut off after %d of %d bytes", len(body), resp.ContentLength)
	case err != nil:
		return nil, ask.failed(err)
	case len(body) > ianadb.MaxFile:
		return nil, ask.hint("the server sends more than %d MiB, which no registry has", ianadb.MaxFile>>20)
	}
	return &fetched{bytes.NewReader(body), validator(resp.Header, "Last-Modified"), validator(resp.Header, "ETag")}, nil
}

// onlyHTTPS follows redirects as far as they are safe. The next server is not told what was asked of the last one.
func onlyHTTPS(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	switch {
	case req.URL.Scheme != "https":
		return fmt.Errorf("redirected to %s://%s, and only https is fetched", printable(req.URL.Scheme), printable(req.URL.Host))
	case len(via) > maxRedirects:
		return fmt.Errorf("redirected more than %d times", maxRedirects)
	}
	return nil
}

// failed says why nothing came, without Go's own words around it.
func (ask fetch) failed(err error) error {
	var (
		of   *url.Error
		cert *tls.CertificateVerificationError
	)
	if errors.As(err, &of) {
		err = of.Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return try(fmt.Errorf("fetch %s: not all of it came within %v", ask.url, ask.timeout), fmt.Sprintf("portctl import --url %s --timeout %v", quote(ask.url), 5*ask.timeout))
	case errors.As(err, &cert):
		return try(fmt.Errorf("fetch %s: the server's certificate is not trusted: %w", ask.url, cert.Err), "SSL_CERT_FILE=CA.pem portctl import --url "+quote(ask.url))
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the server hangs up without an answer")
	}
	return ask.hint("%w", err)
}

// hint sends people to where the registry is for sure.
func (ask fetch) hint(format string, args ...any) error {
	err := fmt.Errorf("fetch %s: %w", ask.url, fmt.Errorf(format, args...))
	next := ianaXML
	if ask.url == ianaXML {
		next = ianaCSV
	}
	return try(err, "portctl import --url "+next)
}
