# Firmware that answers pings: it runs after the lines of `demo/guest.py` that enter unreal mode, at PREFIX in f000.
#
# An NE2000 at 0x300 (QEMU's ne2k_isa) is polled after every 16 pages that are written, and each echo request becomes
# its answer: addresses change places, the type becomes 0, the checksum is mended. Nobody asks for its address: who
# pings it knows it.
	.code16
	.set NEXT, 0x7700	# the page of the card's memory where the next packet will be
	.set PACKET, 0x7800	# the card's four bytes, and the frame
	.set FRAME, PACKET + 4
	.set COUNT, 0x7000
	.space PREFIX

	mov $registers, %si
1:	lodsb %cs:(%si), %al
	test %al, %al
	jz 2f
	movzbw %al, %dx
	add $0x2ff, %dx
	lodsb %cs:(%si), %al
	out %al, (%dx)
	jmp 1b
2:	movb $0x47, NEXT

again:	mov $ADDRESS, %edi
	mov $PAGES, %ebp
page:	incl COUNT
	mov %ebp, (%edi)
	add $4096, %edi
	test $0xf, %bp
	jnz 3f
	call poll
3:	dec %ebp
	jnz page
	jmp again

poll:	mov $0x300, %dx
	mov $0x62, %al		# the registers of page 1, for CURR
	out %al, (%dx)
	mov $0x307, %dx
	in (%dx), %al
	mov %al, %ah
	mov $0x300, %dx
	mov $0x22, %al
	out %al, (%dx)
	mov NEXT, %bh
	cmp %ah, %bh
	je 9f
	xor %bl, %bl
	mov $0x0a, %al		# read
	call dma
	push %edi
	mov $PACKET, %di
	mov $16, %cx
	mov $0x310, %dx
	rep insl (%dx), %es:(%di)
	pop %edi
	mov PACKET + 1, %al
	mov %al, NEXT
	dec %ax
	cmp $0x46, %al
	jae 4f
	mov $0x7f, %al
4:	mov $0x303, %dx		# BNRY: the last page that is free again
	out %al, (%dx)
	cmpw $0x0008, FRAME + 12
	jne poll
	cmpb $1, FRAME + 23
	jne poll
	cmpb $8, FRAME + 34
	jne poll
	mov FRAME, %eax
	mov FRAME + 4, %bx
	mov FRAME + 6, %ecx
	mov %ecx, FRAME
	mov FRAME + 10, %cx
	mov %cx, FRAME + 4
	mov %eax, FRAME + 6
	mov %bx, FRAME + 10
	mov FRAME + 26, %eax
	xchg %eax, FRAME + 30
	mov %eax, FRAME + 26
	movb $0, FRAME + 34
	addw $8, FRAME + 36
	adcw $0, FRAME + 36
	mov $0x4000, %bx
	mov $0x12, %al		# write
	call dma
	mov $FRAME, %si
	mov $15, %cx
	mov $0x310, %dx
	rep outsl %ds:(%si), (%dx)
	mov $0x305, %dx		# TBCR
	mov PACKET + 2, %ax
	sub $4, %ax
	out %al, (%dx)
	inc %dx
	mov %ah, %al
	out %al, (%dx)
	mov $0x300, %dx
	mov $0x26, %al		# transmit
	out %al, (%dx)
	jmp poll
9:	ret

# The card's memory at %bx, 64 bytes of it (a frame of 60), by the command %al.
dma:	mov %al, %cl
	mov $0x308, %dx
	mov %bl, %al
	out %al, (%dx)
	inc %dx
	mov %bh, %al
	out %al, (%dx)
	inc %dx
	mov $64, %al
	out %al, (%dx)
	inc %dx
	xor %al, %al
	out %al, (%dx)
	mov $0x300, %dx
	mov %cl, %al
	out %al, (%dx)
	ret

# Register + 1, value: stop; words; no DMA; every frame; no loopback; transmit from 0x40; receive from 0x46 to 0x80; all
# interrupts acknowledged and off; CURR 0x47 of page 1; start.
registers:
	.byte 0x01, 0x21, 0x0f, 0x49, 0x0b, 0, 0x0c, 0, 0x0d, 0x14, 0x0e, 0, 0x05, 0x40
	.byte 0x02, 0x46, 0x03, 0x80, 0x04, 0x46, 0x08, 0xff, 0x10, 0
	.byte 0x01, 0x61, 0x08, 0x47, 0x01, 0x22, 0
