package main

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// wants checks how many arguments there are; what is one of them in words.
func wants(least, most int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s is missing", what)
		case len(args) > most:
			return usagef("%q is one argument too many", args[most])
		}
		return nil
	}
}

// many is as many arguments as anybody likes.
const many = math.MaxInt

// words puts together what people write apart: "tcp 8080 web" is "tcp 8080" and "web".
func words(args []string) (out []string) {
	for i := 0; i < len(args); i++ {
		if isProtocols(args[i]) && i+1 < len(args) {
			i++
			out = append(out, args[i-1]+" "+args[i])
			continue
		}
		out = append(out, args[i])
	}
	return out
}

// isProtocols says whether s is protocol words and nothing else: "tcp", "tcp,udp".
func isProtocols(s string) bool {
	protos, _ := registry.SplitProtocol(s + "/any")
	return protos == s
}

// isEndpoint tells an endpoint from the name or id of a reservation.
func isEndpoint(s string) bool {
	protos, _ := registry.SplitProtocol(s)
	return protos != ""
}

// parseSpec reads what may be reserved. Its error says what is wrong and no more.
func parseSpec(text string) (*pb.EndpointSpec, error) {
	spec, err := client.ParseSpec(text)
	var invalid *registry.InvalidError
	if errors.As(err, &invalid) {
		return nil, invalid
	}
	return spec, err
}

// parseProtocol reads one protocol word.
func parseProtocol(word string) (p pb.Protocol, ok bool) {
	spec, err := parseSpec(word + "/any")
	if err != nil || len(spec.GetProtocols()) != 1 {
		return p, false
	}
	return spec.GetProtocols()[0], true
}

// addAddresses puts spec on these addresses.
func addAddresses(spec *pb.EndpointSpec, addresses []string) error {
	if len(addresses) == 0 {
		return nil
	}
	if len(spec.GetAddresses()) > 0 || spec.GetV6Only() {
		return usagef("the address stands in the endpoint and after --address; say it once")
	}
	for _, a := range addresses {
		host := a
		if strings.Contains(a, ":") && !strings.HasPrefix(a, "[") {
			host = "[" + a + "]"
		}
		one, err := parseSpec("tcp/" + host + ":any")
		if err != nil {
			return fmt.Errorf("--address %s: %w", a, err)
		}
		if one.GetDevice() != "" {
			if spec.GetDevice() != "" && spec.GetDevice() != one.GetDevice() {
				return usagef("--address: one reservation is on one device, not on %s and %s", spec.GetDevice(), one.GetDevice())
			}
			spec.Device = one.GetDevice()
		}
		if len(one.GetAddresses()) == 0 {
			one.Addresses = []string{"::"} // every one of both families
		}
		spec.Addresses = append(spec.Addresses, one.GetAddresses()...)
	}
	return nil
}

// parseRange reads "8000-8099" or "8000".
func parseRange(s string) (*pb.PortRange, error) {
	spec, err := parseSpec("tcp/" + s)
	switch {
	case err != nil:
		return nil, err
	case spec.GetExact() == nil || len(spec.GetAddresses()) > 0:
		return nil, usagef("%q is not a range of ports like 8000-8099", s)
	}
	return spec.GetExact(), nil
}

// parseLabels reads "team=web" as often as it is given.
func parseLabels(texts []string) (map[string]string, error) {
	var labels map[string]string
	for _, t := range texts {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" {
			return nil, usagef("--label %q: it is written key=value", t)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		if _, again := labels[k]; again {
			return nil, usagef("--label %s is given twice", k)
		}
		labels[k] = v
	}
	return labels, nil
}
