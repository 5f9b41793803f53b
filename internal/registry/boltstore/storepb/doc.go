// Package storepb is the records of portd's state file as Go structs, generated from store.proto.
package storepb
