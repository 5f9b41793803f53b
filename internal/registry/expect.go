package registry

// IfRevision is a condition on a change: that the reservation's revision still is this one, so that what the caller saw is what
// it changes. 0 is no condition. It is compared while nobody else can change the reservation; what it refuses is a
// *ConflictError.
type IfRevision Revision

// A target is the reservation that a change means, and in which state. It is part of what a request id stands for.
type target struct {
	Ref string
	If  IfRevision
}

// aim is the target of a change with at most one condition.
func aim(ref string, only []IfRevision) (target, error) {
	t := target{Ref: ref}
	for _, rev := range only {
		if rev < 0 {
			return t, invalid("expected_revision", "%d is negative; 0 means whatever it is", rev)
		}
		t.If = rev
	}
	return t, nil
}

// holds is nil where t's condition is met by res, which the caller has acquired.
func (t target) holds(res *Reservation) error {
	if t.If == 0 || Revision(t.If) == res.Revision {
		return nil
	}
	return &ConflictError{Reservation: res, Expected: Revision(t.If)}
}
