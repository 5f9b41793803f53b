// Package starvation has no code: its tests take from a real portd what it lives on, a thing at a time, and give it back.
//
// While a thing is missing portd stays up, answers what it can, says what it cannot and which limit it was, and uses no
// processor for waiting. When the thing is there again nobody has to tell portd.
package starvation
