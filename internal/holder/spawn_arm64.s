#include "textflag.h"
#include "go_asm.h"

// What the child does is all in here, as in spawn_amd64.s, which has the comments: system calls by number, on registers and the block.
// It has no stack, and SVC leaves alone every register but R0.

#define SYS_fcntl	25
#define SYS_chdir	49
#define SYS_close	57
#define SYS_ppoll	73
#define SYS_fstat	80
#define SYS_exit_group	94
#define SYS_rt_sigaction	134
#define SYS_rt_sigprocmask	135
#define SYS_setsid	157
#define SYS_prctl	167
#define SYS_getpeername	205
#define SYS_sendmsg	211
#define SYS_recvmsg	212
#define SYS_munmap	215
#define SYS_clone	220

#define EINTR	4
#define EAGAIN	11
#define EPIPE	32

// func spawn(b *block) (pid int)
TEXT ·spawn(SB), NOSPLIT, $0-16
	MOVD	b+0(FP), R19

	MOVD	$2, R0 // SIG_SETMASK
	ADD	$block_all, R19, R1
	ADD	$block_before, R19, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	CBNZ	R0, back

	MOVD	block_flags(R19), R0
	MOVD	ZR, R1
	ADD	$block_pidfd, R19, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	MOVD	$SYS_clone, R8
	SVC
	CBZ	R0, child
	MOVD	R0, R20

	MOVD	$2, R0
	ADD	$block_before, R19, R1
	MOVD	ZR, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	MOVD	R20, R0
back:
	MOVD	R0, pid+8(FP)
	RET

child:
	MOVD	$64, R20
defaults:
	MOVD	R20, R0
	ADD	$block_none, R19, R1
	MOVD	ZR, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigaction, R8
	SVC
	SUBS	$1, R20
	BNE	defaults

	MOVD	$15, R0 // PR_SET_NAME
	ADD	$block_name, R19, R1
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	MOVD	$SYS_prctl, R8
	SVC
	MOVD	$SYS_setsid, R8
	SVC
	ADD	$block_root, R19, R0
	MOVD	$SYS_chdir, R8
	SVC

	ADD	$block_gaps, R19, R20
unmap:
	MOVD	gap_at(R20), R0
	MOVD	gap_size(R20), R1
	CBZ	R1, wait
	MOVD	$SYS_munmap, R8
	SVC
	ADD	$gap__size, R20
	B	unmap

wait:
	MOVD	$block_poll, R0
	ADD	R19, R0
	MOVD	$block_polls, R1
	ADD	R19, R1
	MOVD	(R1), R1
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	$8, R4
	MOVD	$SYS_ppoll, R8
	SVC
	CMN	$EINTR, R0
	BEQ	wait
	TBNZ	$63, R0, exit
	MOVD	$(block_poll+pollfd__size+pollfd_Revents), R9
	ADD	R19, R9
	MOVHU	(R9), R10
	CBZ	R10, serve

	// The daemon is dead.
	MOVH	ZR, (R9)
	MOVD	$block_polls, R9
	ADD	R19, R9
	MOVD	$1, R10
	MOVD	R10, (R9)
	MOVD	$block_outside, R9
	ADD	R19, R9, R20
	MOVD	(R20), R0
	MOVD	$block_stat, R1
	ADD	R19, R1
	MOVD	R1, R21
	MOVD	$SYS_fstat, R8
	SVC
	CBNZ	R0, alone
	MOVD	(R21), R9
	MOVD	(block_dev-block_outside)(R20), R10
	CMP	R9, R10
	BNE	alone
	MOVD	8(R21), R9
	MOVD	(block_ino-block_outside)(R20), R10
	CMP	R9, R10
	BNE	alone
	MOVD	(R20), R0
	MOVD	$SYS_close, R8
	SVC
alone:
	MOVD	$1, R0 // SIG_UNBLOCK
	ADD	$block_term, R19, R1
	MOVD	ZR, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	B	wait

serve:
	MOVD	$block_socket, R9
	ADD	R19, R9
	MOVD	(R9), R0
	MOVD	$block_in, R1
	ADD	R19, R1
	MOVD	$0x40, R2 // MSG_DONTWAIT
	MOVD	$SYS_recvmsg, R8
	SVC
	CMN	$EAGAIN, R0
	BEQ	wait
	CMN	$EINTR, R0
	BEQ	wait
	CMP	$0, R0
	BLE	exit
	SUBS	$request__size, R0
	BLT	wait

	// R22 is the head of what goes out, R23 the reply, R24 the request.
	MOVD	$block_out, R22
	ADD	R19, R22
	MOVD	$block_reply, R23
	ADD	R19, R23
	MOVD	$block_request, R24
	ADD	R19, R24
	MOVD	request_tag(R24), R9
	MOVD	R9, reply_tag(R23)
	MOVD	ZR, reply_result(R23)
	MOVD	$1, R9
	MOVD	R9, msghdr_Iovlen(R22)
	MOVD	ZR, msghdr_Controllen(R22)
	MOVWU	request_op(R24), R25
	CMP	$const_opGet, R25
	BNE	scan

	CBZ	R0, send
	ADD	$cmsghdr__size, R0
	MOVD	$block_rights, R9
	ADD	R19, R9
	MOVD	R0, cmsghdr_Len(R9)
	MOVD	R0, msghdr_Controllen(R22)
	B	send

scan:
	MOVD	request_from(R24), R20
	MOVD	$block_bits, R21
	ADD	R19, R21
	MOVD	$(const_chunk/64), R26
word:
	MOVD	ZR, R9
	MOVD	$1, R10
bit:
	MOVD	R20, R0
	CMP	$const_opConnected, R25
	BEQ	connected
	MOVD	$1, R1 // F_GETFD
	MOVD	$SYS_fcntl, R8
	B	ask
connected:
	MOVD	$block_peerLen, R2
	ADD	R19, R2
	MOVD	$128, R1
	MOVD	R1, (R2)
	MOVD	$block_peer, R1
	ADD	R19, R1
	MOVD	$SYS_getpeername, R8
ask:
	SVC
	TBNZ	$63, R0, next
	ORR	R10, R9
next:
	ADD	$1, R20
	LSL	$1, R10
	CBNZ	R10, bit
	MOVD	R9, (R21)
	ADD	$8, R21
	SUBS	$1, R26
	BNE	word
	MOVD	$2, R9
	MOVD	R9, msghdr_Iovlen(R22)

send:
	MOVD	$block_socket, R9
	ADD	R19, R9
	MOVD	(R9), R0
	MOVD	R22, R1
	MOVD	$0x4000, R2 // MSG_NOSIGNAL
	MOVD	$SYS_sendmsg, R8
	SVC
	TBZ	$63, R0, wait
	CMN	$EPIPE, R0
	BEQ	exit
	MOVD	reply_result(R23), R9
	CBNZ	R9, wait
	MOVD	R0, reply_result(R23)
	MOVD	$1, R9
	MOVD	R9, msghdr_Iovlen(R22)
	MOVD	ZR, msghdr_Controllen(R22)
	B	send

exit:
	MOVD	ZR, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	exit

// func text() uintptr
TEXT ·text(SB), NOSPLIT, $0-8
	MOVD	$·spawn(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// func threadArea() uintptr
TEXT ·threadArea(SB), NOSPLIT, $0-8
	MRS	TPIDR_EL0, R0
	MOVD	R0, ret+0(FP)
	RET
