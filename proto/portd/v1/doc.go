// Package portdv1 is portd's API, generated from the .proto files beside it.
//
// Programs rather use package client; the messages that go in and out of it are these.
package portdv1
