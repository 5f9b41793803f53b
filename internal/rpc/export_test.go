package rpc

// For the tests of what stands between proto and domain.
var (
	ToEndpointSpec   = toEndpointSpec
	FromEndpointSpec = fromEndpointSpec
	FromEntry        = fromEntry
	ToListenOptions  = toListenOptions
	ToFilter         = toFilter
	ToWatch          = toWatch
)
