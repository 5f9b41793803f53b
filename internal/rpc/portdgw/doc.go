// Package portdgw is the REST gateway, generated from the .proto files: it turns requests into gRPC calls, and answers
// back into JSON.
package portdgw
