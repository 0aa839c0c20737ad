package diags

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// Machine says which kernel this is, and how much room there is where folders are.
func Machine(folders ...string) []byte {
	var b bytes.Buffer
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(&b, "kernel %s %s %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]))
	}
	for _, dir := range folders {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil {
			fmt.Fprintf(&b, "%s: %d of %d MiB free, %d of %d inodes\n", dir, st.Bavail*uint64(st.Bsize)>>20, st.Blocks*uint64(st.Bsize)>>20, st.Ffree, st.Files)
		}
	}
	return b.Bytes()
}
