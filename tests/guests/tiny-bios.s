# SPDX-License-Identifier: LGPL-2.1-or-later
# The tiny guest as a 64 KiB firmware for QEMU's q35 and pc (-bios): real mode, up after some 30 ms.
# It prints and obeys the same as the PVH one (tiny-pvh.s), but for E, and powers off by the chipset's ACPI registers.

        .equ    COM1, 0x3f8                     # data; +5: line status, bit 0: received
        .equ    PM, 0x600                       # +0 status, +2 enable (bit 8: button), +4 control
        .equ    PVPANIC, 0x505
        .equ    STACK, 0x7000

        .macro  outb value, port
        mov     $\value, %al
        out     %al, $\port
        .endm

        # pci BUS:DEVICE.FUNCTION and register as in the configuration address, 32-bit value
        .macro  pci address, value
        mov     $\address, %eax
        mov     $0xcf8, %dx
        out     %eax, %dx
        mov     $\value, %eax
        mov     $0xcfc, %dx
        out     %eax, %dx
        .endm

        .code16
        .org    0
start:  cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $STACK, %sp

        # A 4 GiB limit for FS, to reach the local APIC: on, and LINT0 as ExtINT (what a BIOS does).
        lgdt    %cs:gdt_register
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        mov     $8, %bx
        mov     %bx, %fs
        and     $0xfe, %al
        mov     %eax, %cr0
        mov     $0xfee000f0, %ebx
        movl    $0x1ff, %fs:(%ebx)
        mov     $0xfee00350, %ebx
        movl    $0x700, %fs:(%ebx)

        movw    $tick, 0x20                     # vector 8, IRQ 0
        movw    $0xf000, 0x22
        outb    0x11, 0x20                      # 8259s: initialise, with ICW4
        outb    0x11, 0xa0
        outb    8, 0x21
        outb    0x70, 0xa1
        outb    4, 0x21
        outb    2, 0xa1
        outb    1, 0x21
        outb    1, 0xa1
        outb    0xfe, 0x21                      # only IRQ 0
        outb    0xff, 0xa1
        outb    0x34, 0x43                      # PIT channel 0, rate generator, 65536
        outb    0, 0x40
        outb    0, 0x40

        pci     0x80000b40, PM | 1              # PIIX4 (00:01.3): base of the ACPI registers,
        pci     0x80000b80, 1                   # enable
        pci     0x8000f840, PM | 1              # ICH9 (00:1f.0)
        pci     0x8000f844, 0x80
        mov     $PM + 2, %dx
        mov     $0x100, %ax
        out     %ax, %dx

        mov     $up, %si
        call    print
idle:   sti
        hlt
        cli
        mov     $PM, %dx
        in      %dx, %ax
        test    $0x100, %ax
        jnz     button
poll:   mov     $COM1 + 5, %dx
        in      %dx, %al
        test    $1, %al
        jz      idle
        mov     $COM1, %dx
        in      %dx, %al
        out     %al, %dx
        cmp     $'q', %al
        je      poweroff
        cmp     $'r', %al
        je      reset
        cmp     $'p', %al
        je      panic
        cmp     $'t', %al
        je      triple
        cmp     $'s', %al
        je      spin
        jmp     poll

button: mov     $0x100, %ax                     # seen: or it were pressed again after a reset
        out     %ax, %dx
        mov     $pressed, %si
        call    print
poweroff:
        mov     $PM + 4, %dx
        mov     $0x2000, %ax                    # sleep type 0 is S5 here; enable
        out     %ax, %dx
        jmp     idle
reset:  outb    0xfe, 0x64                      # keyboard controller
        jmp     idle
panic:  mov     $PVPANIC, %dx
        mov     $1, %al
        out     %al, %dx
1:      hlt                                     # interrupts are off
        jmp     1b
triple: lidt    %cs:no_idt
        int3
        jmp     idle
spin:   jmp     spin

print:  mov     %cs:(%si), %al
        inc     %si
        test    %al, %al
        jz      1f
        mov     $COM1, %dx
        out     %al, %dx
        jmp     print
1:      ret

tick:   push    %ax
        outb    0x20, 0x20                      # end of interrupt
        pop     %ax
        iret

no_idt: .word   0
        .long   0
        .balign 8
gdt:    .quad   0
        .quad   0x00cf93000000ffff
gdt_register:
        .word   15
        .long   0xf0000 + gdt
up:     .asciz  "TINY-UP\r\n"
pressed:
        .asciz  "POWERBTN\r\n"

        .org    0xfff0                          # where the processor starts
        ljmp    $0xf000, $start
        .org    0xffff
        .byte   0
