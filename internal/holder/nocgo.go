//go:build !cgo

package holder

const cgo = false
