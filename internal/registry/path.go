package registry

import (
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPath is what sun_path holds without its final zero (unix(7)).
const maxPath = 107

// parsePath reads what follows the word unix: "/run/app.sock", "//run/app.sock" or ":/run/app.sock".
func parsePath(s string) (string, error) {
	p := strings.TrimSpace(s)
	p = strings.TrimPrefix(p, ":")
	if !strings.HasPrefix(p, "/") {
		return "", invalid("path", "%q is not absolute; write it like unix/run/app.sock", s)
	}
	p = path.Clean(p)
	return p, checkPath(p)
}

func checkPath(p string) error {
	switch {
	case p == "":
		return invalid("path", "is missing")
	case p == "/" || path.Clean(p) != p || p[0] != '/':
		return invalid("path", "%q is not an absolute path without . and .. that names a file", p)
	case len(p) > maxPath:
		return invalid("path", "%q has %d bytes; the kernel takes %d", p, len(p), maxPath)
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return invalid("path", "%q has control characters, or is not UTF-8", p)
	}
	return nil
}

// isPath says whether a text is a unix endpoint, and what follows that word.
func isPath(s string) (rest string, is bool) {
	s = strings.TrimSpace(s)
	word, n := "unix", len("unix")
	if len(s) <= n || !strings.EqualFold(s[:n], word) || !strings.ContainsRune("/: ", rune(s[n])) {
		return "", false
	}
	return s[n:], true
}

// path is the spec of a unix endpoint.
func pathSpec(rest string) (EndpointSpec, error) {
	p, err := parsePath(rest)
	return EndpointSpec{Netns: HostNetns, Protos: []Protocol{Unix}, Path: p}, err
}

// checkPathSpec refuses what a unix endpoint cannot have.
func checkPathSpec(s EndpointSpec, opt BindOptions) error {
	switch {
	case len(s.Protos) != 1 || s.Protos[0] != Unix:
		return invalid("spec.endpoints.path", "goes with the protocol unix and no other")
	case s.Path == "":
		return invalid("spec.endpoints.path", "is missing; a unix endpoint has a path and no port")
	case len(s.Addrs) > 0 || s.V6Only || s.Device != "":
		return invalid("spec.endpoints", "a unix endpoint has a path, and no address or device")
	case s.Any != nil || s.Service != "" || s.Exact != PortRange{}:
		return invalid("spec.endpoints", "a unix endpoint has a path, and no port")
	case opt.Freebind || opt.Transparent || opt.MPTCP || opt.Group > 1:
		return invalid("spec.bind_options", "of a unix endpoint is the file mode only")
	}
	if opt.FileMode > 0o777 {
		return invalid("spec.bind_options.file_mode", "%#o is not one of a socket; allowed are 0 to 0777, who may read, write and execute (chmod(1))", opt.FileMode)
	}
	return checkPath(s.Path)
}
