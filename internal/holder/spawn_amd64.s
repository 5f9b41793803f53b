#include "textflag.h"
#include "go_asm.h"

// What the child does is all in here: system calls by number, on registers and the block. It has no stack (SP points to memory that it
// unmaps), so there is no CALL and no PUSH, and SYSCALL leaves alone every register but AX, CX and R11.

#define SYS_close	3
#define SYS_fstat	5
#define SYS_munmap	11
#define SYS_rt_sigaction	13
#define SYS_rt_sigprocmask	14
#define SYS_sendmsg	46
#define SYS_recvmsg	47
#define SYS_getpeername	52
#define SYS_clone	56
#define SYS_fcntl	72
#define SYS_chdir	80
#define SYS_setsid	112
#define SYS_prctl	157
#define SYS_exit_group	231
#define SYS_ppoll	271

#define EINTR	4
#define EAGAIN	11
#define EPIPE	32

// func spawn(b *block) (pid int)
TEXT ·spawn(SB), NOSPLIT, $0-16
	MOVQ	b+0(FP), R12

	// From here to the child's own handlers, and in the parent until the mask is back, no signal handler may run: it would be the
	// Go runtime's, in a process that has none.
	MOVL	$2, DI // SIG_SETMASK
	LEAQ	block_all(R12), SI
	LEAQ	block_before(R12), DX
	MOVL	$8, R10
	MOVL	$SYS_rt_sigprocmask, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	back

	MOVQ	block_flags(R12), DI
	XORL	SI, SI
	LEAQ	block_pidfd(R12), DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$SYS_clone, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, R13

	MOVL	$2, DI
	LEAQ	block_before(R12), SI
	XORL	DX, DX
	MOVL	$8, R10
	MOVL	$SYS_rt_sigprocmask, AX
	SYSCALL
	MOVQ	R13, AX
back:
	MOVQ	AX, pid+8(FP)
	RET

child:
	MOVL	$64, R13
defaults:
	MOVQ	R13, DI
	LEAQ	block_none(R12), SI
	XORL	DX, DX
	MOVL	$8, R10
	MOVL	$SYS_rt_sigaction, AX
	SYSCALL
	DECQ	R13
	JNE	defaults

	MOVL	$15, DI // PR_SET_NAME
	LEAQ	block_name(R12), SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$SYS_prctl, AX
	SYSCALL
	MOVL	$SYS_setsid, AX
	SYSCALL
	LEAQ	block_root(R12), DI
	MOVL	$SYS_chdir, AX
	SYSCALL

	LEAQ	block_gaps(R12), R13
unmap:
	MOVQ	gap_at(R13), DI
	MOVQ	gap_size(R13), SI
	TESTQ	SI, SI
	JEQ	wait
	MOVL	$SYS_munmap, AX
	SYSCALL
	ADDQ	$gap__size, R13
	JMP	unmap

wait:
	LEAQ	block_poll(R12), DI
	MOVQ	block_polls(R12), SI
	XORL	DX, DX
	XORL	R10, R10
	MOVL	$8, R8
	MOVL	$SYS_ppoll, AX
	SYSCALL
	CMPQ	AX, $-EINTR
	JEQ	wait
	TESTQ	AX, AX
	JLT	exit
	MOVWLZX	(block_poll+pollfd__size+pollfd_Revents)(R12), AX
	TESTL	AX, AX
	JEQ	serve

	// The daemon is dead, and the table is this process's alone. If the other end is still in it, it would keep itself open.
	MOVW	$0, (block_poll+pollfd__size+pollfd_Revents)(R12)
	MOVQ	$1, block_polls(R12)
	MOVQ	block_outside(R12), DI
	LEAQ	block_stat(R12), SI
	MOVL	$SYS_fstat, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	alone
	MOVQ	block_stat(R12), AX
	CMPQ	AX, block_dev(R12)
	JNE	alone
	MOVQ	(block_stat+8)(R12), AX
	CMPQ	AX, block_ino(R12)
	JNE	alone
	MOVQ	block_outside(R12), DI
	MOVL	$SYS_close, AX
	SYSCALL
alone:
	MOVL	$1, DI // SIG_UNBLOCK
	LEAQ	block_term(R12), SI
	XORL	DX, DX
	MOVL	$8, R10
	MOVL	$SYS_rt_sigprocmask, AX
	SYSCALL
	JMP	wait

serve:
	MOVQ	block_socket(R12), DI
	LEAQ	block_in(R12), SI
	MOVL	$0x40, DX // MSG_DONTWAIT
	MOVL	$SYS_recvmsg, AX
	SYSCALL
	CMPQ	AX, $-EAGAIN
	JEQ	wait
	CMPQ	AX, $-EINTR
	JEQ	wait
	TESTQ	AX, AX
	JLE	exit // end of file
	SUBQ	$request__size, AX
	JLT	wait

	MOVQ	(block_request+request_tag)(R12), CX
	MOVQ	CX, (block_reply+reply_tag)(R12)
	MOVQ	$0, (block_reply+reply_result)(R12)
	MOVQ	$1, (block_out+msghdr_Iovlen)(R12)
	MOVQ	$0, (block_out+msghdr_Controllen)(R12)
	MOVL	(block_request+request_op)(R12), BX
	CMPL	BX, $const_opGet
	JNE	scan

	// The numbers were received right behind the head of the control message in which they go out again.
	TESTQ	AX, AX
	JEQ	send
	ADDQ	$cmsghdr__size, AX
	MOVQ	AX, (block_rights+cmsghdr_Len)(R12)
	MOVQ	AX, (block_out+msghdr_Controllen)(R12)
	JMP	send

scan:
	// One bit for each number from request.from on: open, or a socket that is connected.
	MOVQ	(block_request+request_from)(R12), R13
	LEAQ	block_bits(R12), R14
	MOVL	$(const_chunk/64), R15
word:
	XORL	BP, BP
	MOVL	$1, R9
bit:
	MOVQ	R13, DI
	CMPL	BX, $const_opConnected
	JEQ	connected
	MOVL	$1, SI // F_GETFD
	MOVL	$SYS_fcntl, AX
	JMP	ask
connected:
	MOVQ	$128, block_peerLen(R12)
	LEAQ	block_peer(R12), SI
	LEAQ	block_peerLen(R12), DX
	MOVL	$SYS_getpeername, AX
ask:
	SYSCALL
	TESTQ	AX, AX
	JLT	next
	ORQ	R9, BP
next:
	INCQ	R13
	SHLQ	$1, R9
	JNE	bit
	MOVQ	BP, (R14)
	ADDQ	$8, R14
	DECL	R15
	JNE	word
	MOVQ	$2, (block_out+msghdr_Iovlen)(R12)

send:
	MOVQ	block_socket(R12), DI
	LEAQ	block_out(R12), SI
	MOVL	$0x4000, DX // MSG_NOSIGNAL
	MOVL	$SYS_sendmsg, AX
	SYSCALL
	TESTQ	AX, AX
	JGE	wait
	CMPQ	AX, $-EPIPE
	JEQ	exit
	// The kernel has refused the descriptors: say why instead. What fails without any has nobody to hear of it.
	MOVQ	(block_reply+reply_result)(R12), CX
	TESTQ	CX, CX
	JNE	wait
	MOVQ	AX, (block_reply+reply_result)(R12)
	MOVQ	$1, (block_out+msghdr_Iovlen)(R12)
	MOVQ	$0, (block_out+msghdr_Controllen)(R12)
	JMP	send

exit:
	XORL	DI, DI
	MOVL	$SYS_exit_group, AX
	SYSCALL
	JMP	exit

// func text() uintptr
TEXT ·text(SB), NOSPLIT, $0-8
	LEAQ	·spawn(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
