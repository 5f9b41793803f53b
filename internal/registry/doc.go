// Package registry is the authority: what a port is, who may have it, who has it, and for how long. It knows neither
// gRPC, nor bbolt, nor sockets; those are doors into it, the place it keeps things in, and the hand it uses.
//
// Every change is bound first, then committed, then answered; releasing goes the other way. One goroutine commits
// whatever is waiting as one batch. Readers read memory.
package registry
