package handoff

import "time"

// PerMessage is how many connections a message carries at most.
const PerMessage = perMessage

// MaxKnocking is how many handshakes one user may have at a time.
const MaxKnocking = maxKnocking

// SetPatience sets how long a handshake may take. It must be called before Serve.
func (p *Pool) SetPatience(d time.Duration) { p.patience = d }
