// Package openapi is the description of portd's REST API, for the daemon to serve and for tools to read.
//
// Both documents are generated from the .proto files and say the same in two versions of the format, since many tools
// still read only the older one.
package openapi

import _ "embed"

// V2 is the API in OpenAPI 2.0 ("Swagger"), as JSON.
//
//go:embed portd.v2.json
var V2 []byte

// V31 is the API in OpenAPI 3.1, as JSON.
//
//go:embed portd.v3.json
var V31 []byte
