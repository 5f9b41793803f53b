package binder

// WithoutBoundShown makes b take the kernel for one that shows no TCP sockets that are only bound.
func (b *Binder) WithoutBoundShown() { b.boundShown = false }

// Without makes b take the kernel for one that lacks these.
func (b *Binder) Without(ipv6, fallback bool) {
	b.ipv6 = b.ipv6 && !ipv6
	b.fallback = b.fallback && !fallback
}

// MaxDescriptors is the soft RLIMIT_NOFILE.
func MaxDescriptors() int {
	n, _ := maxDescriptors()
	return n
}

// Mended returns when what is being mended is.
func (b *Binder) Mended() { b.mending.Wait() }

// ReadName is what a kept descriptor's name says.
func ReadName(name string) (kind byte, lent bool, member int, salt uint32, ok bool) {
	kind, of, ok := readName(name)
	return kind, of.Lent, of.Member, of.Salt, ok
}

// ReadNotes says of how many of n sockets in a bag there is a note.
func ReadNotes(payload []byte, n int) (noted int, err error) {
	all, err := readNotes(payload, n)
	for _, of := range all {
		if of != (note{}) {
			noted++
		}
	}
	return noted, err
}
