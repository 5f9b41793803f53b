package netns

// What tests outside reach into.
var (
	ParseLink = parseLink
	LinkTo    = linkTo
	Unescape  = unescape
)
