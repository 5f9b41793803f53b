package keeper

// File is the path that this program was started by, for the next one: what is put there is started then.
func File() (string, error) { return file() }
