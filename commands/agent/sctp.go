package agent

import (
	"encoding/binary"
	"hash/crc32"
)

// initChunk is an SCTP packet that begins an association (RFC 9260, sections 3.1 and
// 3.3.2), with CRC32c.
func initChunk(from, to uint16) []byte {
	b := make([]byte, 12+20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	chunk := b[12:]
	chunk[0] = 1 // INIT
	binary.BigEndian.PutUint16(chunk[2:], 20)
	binary.BigEndian.PutUint32(chunk[4:], 0x6e637472) // its tag
	binary.BigEndian.PutUint32(chunk[8:], 65536)      // window in bytes
	binary.BigEndian.PutUint16(chunk[12:], 1)         // streams out
	binary.BigEndian.PutUint16(chunk[14:], 1)         // and in
	binary.BigEndian.PutUint32(chunk[16:], 1)         // sequence
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
