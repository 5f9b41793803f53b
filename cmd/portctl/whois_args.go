package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A question is what whois asks: ports, a name where that is not empty, or a DCCP service code.
type question struct {
	first, last uint16
	name        string
	code        *uint32
	proto       pb.Protocol // unspecified: all
}

func (q question) isPorts() bool { return q.name == "" && q.code == nil }

func (q question) isRange() bool { return q.isPorts() && q.first != q.last }

// String is the question as parseQuestion reads it.
func (q question) String() string {
	text := q.name
	switch {
	case q.code != nil:
		return fmt.Sprintf("SC=%d", *q.code)
	case q.isPorts():
		text = portsText(&pb.PortRange{First: uint32(q.first), Last: uint32(q.last)})
	case q.proto != 0 && (strings.Contains(text, "/") || isProtocols(text)): // what stands before the first slash decides
		return protoWord(q.proto) + "/" + text
	}
	if q.proto != 0 {
		text += "/" + protoWord(q.proto)
	}
	return text
}

// parseQuestions reads all arguments of whois, left to right. A protocol that stands apart is that of all that follow it up to
// the next; if one is the last argument, they are those of what stands before. Several in one word are as many questions.
func parseQuestions(args, codes []string) (questions []question, err error) {
	texts, err := pairs(args)
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		for _, one := range eachProtocol(text) {
			q, err := parseQuestion(one)
			if err != nil {
				return nil, err
			}
			questions = append(questions, q)
		}
	}
	for _, text := range codes {
		code, err := ianadb.ParseServiceCode(upperSC(text))
		if err != nil {
			return nil, usageError(err.Error())
		}
		questions = append(questions, question{code: &code})
	}
	if len(questions) == 0 {
		return nil, usagef("a port or the name of a service is missing")
	}
	return questions, nil
}

// pairs puts protocols that stand apart to what they belong to: "tcp 443" and "443 tcp" are one question. What has a protocol
// of its own keeps it. Where all arguments are protocols, they are services.
func pairs(args []string) (texts []string, err error) {
	protos := 0
	for _, a := range args {
		if isProtocols(a) {
			protos++
		}
	}
	if protos == 0 || protos == len(args) {
		return args, nil
	}
	order := slices.Clone(args)
	after := isProtocols(args[len(args)-1])
	if after { // read from its end, a protocol stands before what it is of
		slices.Reverse(order)
	}
	proto := ""
	for i, a := range order {
		own, _ := registry.SplitProtocol(a)
		switch is := isProtocols(a); {
		case is && (i+1 == len(order) || isProtocols(order[i+1])):
			return nil, usagef("it is not clear what %s is to go with; write it after a slash, as in 443/%s", a, a)
		case is:
			proto = a
		case proto == "" || own != "":
			texts = append(texts, a)
		default:
			texts = append(texts, proto+" "+a)
		}
	}
	if after {
		slices.Reverse(texts)
	}
	return texts, nil
}

// eachProtocol is "tcp,udp/53" as "tcp/53" and "udp/53".
func eachProtocol(text string) []string {
	protos, rest := registry.SplitProtocol(text)
	if isServiceCode(text) || !strings.Contains(protos, ",") {
		return []string{text}
	}
	var each []string
	for word := range strings.SplitSeq(protos, ",") {
		each = append(each, word+"/"+rest)
	}
	return each
}

func parseQuestion(text string) (q question, err error) {
	// A service code may have a slash in it.
	if isServiceCode(text) {
		return parseCode(text)
	}
	protos, rest := registry.SplitProtocol(text)
	if protos == "unix" {
		return q, usagef("%q is a path, and whois knows ports; portctl show %s says who has it", text, text)
	}
	if protos != "" {
		var ok bool
		if q.proto, ok = parseProtocol(protos); !ok {
			return q, usagef("%q: %q is not one protocol; known are tcp, udp, sctp, dccp and udplite", text, protos)
		}
	}
	switch {
	case isServiceCode(rest) && q.proto == pb.Protocol_PROTOCOL_DCCP:
		return parseCode(rest)
	case isServiceCode(rest):
		return q, usagef("%q: only DCCP has service codes (RFC 4340 section 8.1.2)", text)
	}
	if ports, ok, err := parsePorts(rest); ok || err != nil {
		q.first, q.last = ports.First, ports.Last
		return q, err
	}
	// An endpoint with an address is asked about as often; its ports are meant.
	if ep, err := registry.ParseEndpoint(text); err == nil {
		q.first, q.last = ep.First, ep.Last
		return q, nil
	}
	if better := betterForm(rest, protos); better != "" {
		return q, usagef("%q is neither a port, 0 to 65535, nor the name of a service; write %s", cmp.Or(rest, text), better)
	}
	if port, word, ok := strings.Cut(rest, "/"); ok {
		if _, isPorts, _ := parsePorts(port); isPorts {
			return q, usagef("%q: %q is not a protocol; known are tcp, udp, sctp, dccp and udplite", text, word)
		}
	}
	if !isName(rest) {
		return q, usagef("%q is neither a port, 0 to 65535, nor the name of a service", rest)
	}
	q.name = rest
	return q, nil
}

// parsePorts reads "443" and "6000-6010", and says whether s is that. Other than for reserve, 0 is a port.
func parsePorts(s string) (r ianadb.Range, ok bool, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	f, err1 := strconv.ParseUint(first, 10, 16)
	l, err2 := strconv.ParseUint(last, 10, 16)
	switch {
	case err1 == nil && err2 == nil && l < f:
		return r, false, usagef("%q runs backwards; write %d-%d", s, l, f)
	case err1 == nil && err2 == nil:
		return ianadb.Range{First: uint16(f), Last: uint16(l)}, true, nil
	}
	return r, false, nil
}

// betterForm is how to write what people write in other ways, or "" where that is not known: ports without one end or past
// the last, a list, a slash with nothing beside it.
func betterForm(s, protos string) string {
	isPort := func(s string) bool { _, err := strconv.ParseUint(s, 10, 16); return err == nil }
	isNumber := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	first, last, isRange := strings.Cut(s, "-")
	if colon := strings.Count(s, ":"); colon == 1 && !isRange {
		first, last, isRange = strings.Cut(s, ":")
	}
	switch bare := strings.Trim(s, "/"); {
	case s == "" && protos != "":
		return "443/" + protos
	case bare != s && isPort(bare):
		return bare + " or " + bare + "/tcp"
	case isRange && isPort(first) && (last == "" || isNumber(last) && !isPort(last)):
		return first + "-65535"
	case isRange && isPort(first) && isPort(last):
		return first + "-" + last
	}
	items := strings.Split(s, ",")
	if len(items) > 1 && !slices.ContainsFunc(items, func(item string) bool { return !isPort(item) }) {
		return strings.Join(items, " ")
	}
	return ""
}

// isServiceCode says whether s is written as RFC 4340 section 8.1.2 writes service codes, in either case.
func isServiceCode(s string) bool {
	return strings.HasPrefix(upperSC(s), "SC:") || strings.HasPrefix(upperSC(s), "SC=")
}

func upperSC(s string) string {
	if len(s) < 2 {
		return s
	}
	return strings.ToUpper(s[:2]) + s[2:]
}

func parseCode(s string) (question, error) {
	code, err := ianadb.ParseServiceCode(upperSC(s))
	if err != nil {
		return question{}, usageError(err.Error())
	}
	return question{code: &code}, nil
}

// isName says whether s can be the name of a service: it has a letter (RFC 6335 section 5.1), and no blanks. The
// registry has some with slashes, stars and dots.
func isName(s string) bool {
	letter := false
	for _, r := range s {
		if r <= ' ' || r >= 0x7f {
			return false
		}
		letter = letter || 'a' <= r|0x20 && r|0x20 <= 'z'
	}
	return letter
}
