// Package skew has no code: its tests play the programs of two releases against each other.
//
// Hosts are not upgraded at one go. A new portd takes over from an old one, and is rolled back; a keeper starts a daemon that is newer or
// older than itself; programs that were built with another release's client go on being served, and a portctl of another release asks.
// That numbers of versions agree says little of it: what counts is that a message, a file or a descriptor's name of one is understood
// by the other. So the tests build the release before this one from the project's own history, by the commit in the file previous, and run
// real processes of both.
package skew
