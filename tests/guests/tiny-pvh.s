# SPDX-License-Identifier: LGPL-2.1-or-later
# The tiny guest for QEMU's microvm, Firecracker and Cloud Hypervisor: a PVH kernel of 2 KiB that is up after some 20 ms, in
# QEMU also without KVM.
#
# It prints TINY-UP on the first serial port, then echoes what it reads there and obeys:
#   q  power off            r  reset            p  panic (pvpanic: a port, or a PCI device)
#   t  triple fault         s  spin with interrupts off: deaf to the power button
#   E  go on where no memory is, which is an error that KVM gives up upon
# The ACPI power button prints POWERBTN and powers off. Where there is a keyboard controller (Firecracker), the button is
# Ctrl-Alt-Del on it, and what follows POWERBTN is a reset: such a machine has no button, and can't be powered off.
#
# It sleeps in hlt and looks around at each tick of the PIT (18.2 Hz), which comes through the 8259 and
# the local APIC's LINT0; where there is PCI (Cloud Hypervisor), there is neither, and the tick is the local APIC's own, while the
# button is an interrupt of the I/O APIC: the register that tells of it lies above 4 GiB. Nested KVM without hardware support emulates the kernel mode, and does not know
# a protected-mode iret: as `hlt` is the only place where interrupts are on, the handler drops its frame
# and falls through to the loop instead.

        .equ    COM1, 0x3f8                     # data; +5: line status, bit 0: received
        .equ    GED, 0xfea00000                 # generic event device: +0 events, read clears; bit 1: button
        .equ    GED_SLEEP, GED + 0x200          # 0x34: sleep type 5, enable
        .equ    GED_RESET, GED + 0x202          # 0x42: reset
        .equ    SLEEP_PORT, 0x600               # Cloud Hypervisor: 0x34 sleep, 1 reset
        .equ    APIC_EOI, 0xfee000b0
        .equ    APIC_SVR, 0xfee000f0
        .equ    APIC_TIMER, 0xfee00320
        .equ    APIC_COUNT, 0xfee00380
        .equ    APIC_DIVIDE, 0xfee003e0
        .equ    IOAPIC, 0xfec00000              # +0 index, +0x10 data
        .equ    IOAPIC_PINS, 24
        .equ    APIC_LINT0, 0xfee00350
        .equ    PVPANIC, 0x505
        .equ    PVPANIC_PCI, 0x00111b36
        .equ    NOWHERE, 0xe0000000             # neither memory nor a device
        .equ    HOST_BRIDGE, 0x0d578086         # Cloud Hypervisor's
        .equ    TICK, 0x20                      # vector of IRQ 0
        .equ    PRESS, 0x21
        .equ    KBD, 0x60                       # keyboard controller: data; +4: status (bit 0: data is there), commands
        .equ    KBD_DELETE, 0x71                # the last byte of Ctrl-Alt-Del (14 11 e0 71, scan code set 2)

        .macro  outb value, port
        mov     $\value, %al
        out     %al, $\port
        .endm

        .text
        .code32
        .globl  start
start:  cli
        mov     $stack, %esp
        lgdt    gdt_register
        ljmp    $8, $1f
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss

        mov     $tick, %eax                     # the two gates of the IDT
        mov     %ax, idt + TICK * 8
        mov     $press, %eax
        mov     %ax, idt + PRESS * 8
        shr     $16, %eax                       # both lie in the same 64 KiB
        mov     %ax, idt + TICK * 8 + 6
        mov     %ax, idt + PRESS * 8 + 6
        lidt    idt_register

        movl    $0x1ff, APIC_SVR                # APIC on
        movl    $0x700, APIC_LINT0              # ExtINT: what the 8259 says
        outb    0x11, 0x20                      # 8259s: initialise, with ICW4
        outb    0x11, 0xa0
        outb    TICK, 0x21
        outb    TICK + 8, 0xa1
        outb    4, 0x21
        outb    2, 0xa1
        outb    1, 0x21
        outb    1, 0xa1
        outb    0xfe, 0x21                      # only IRQ 0
        outb    0xff, 0xa1
        outb    0x34, 0x43                      # PIT channel 0, rate generator, 65536
        outb    0, 0x40
        outb    0, 0x40

        xor     %ebx, %ebx
        call    pci
        cmp     $HOST_BRIDGE, %eax
        jne     2f
        incb    has_pci
        movl    $11, APIC_DIVIDE                # by 1: 1 GHz
        movl    $TICK + 0x20000, APIC_TIMER     # periodic
        movl    $55000000, APIC_COUNT
        mov     $0x10 + 2 * 5, %ecx             # pins 5 and up: what rings there is the button
1:      inc     %ecx
        mov     %ecx, IOAPIC
        movl    $0, IOAPIC + 0x10
        dec     %ecx
        mov     %ecx, IOAPIC
        movl    $PRESS, IOAPIC + 0x10
        add     $2, %ecx
        cmp     $0x10 + 2 * IOAPIC_PINS, %ecx
        jb      1b
        jmp     3f

2:      in      $KBD + 4, %al                   # no such port: 0xff or, on some VMMs, 0 whatever is written
        cmp     $0xff, %al
        je      3f
        outb    0x20, KBD + 4                   # read its control byte
        in      $KBD + 4, %al
        and     $1, %al
        mov     %al, keyboard
        in      $KBD, %al

3:      mov     $up, %esi
        call    print
idle:   sti
        hlt
        jmp     idle

tick:   outb    0x20, 0x20                      # end of interrupt
        movl    $0, APIC_EOI
        add     $12, %esp                       # no iret, see above
        cmpb    $0, has_pci
        jne     poll
        cmpb    $0, keyboard
        jne     keys
        mov     GED, %eax                       # where there is none, nobody knows what is read
        test    $2, %eax
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
        cmp     $'E', %al
        je      nowhere
        jmp     poll

keys:   in      $KBD + 4, %al
        test    $1, %al
        jz      poll
        in      $KBD, %al
        cmp     $KBD_DELETE, %al
        jne     keys

press:  movl    $0, APIC_EOI
        add     $12, %esp
button: mov     $pressed, %esi
        call    print
        cmpb    $0, keyboard
        jne     reset
poweroff:
        movb    $0x34, GED_SLEEP
        mov     $SLEEP_PORT, %dx
        mov     $0x34, %al
        out     %al, %dx
1:      hlt                                     # interrupts are off
        jmp     1b
reset:  outb    0xfe, KBD + 4
        movb    $0x42, GED_RESET
        jmp     idle
panic:  mov     $PVPANIC, %dx
        mov     $1, %al
        out     %al, %dx
        cmpb    $0, has_pci
        je      2f
        xor     %ebx, %ebx
1:      add     $0x800, %ebx                    # the next device
        cmp     $0x10000, %ebx
        je      2f
        call    pci
        cmp     $PVPANIC_PCI, %eax
        jne     1b
        add     $0x10, %ebx                     # its memory
        call    pci
        and     $~15, %eax
        movb    $1, (%eax)
2:      hlt                                     # interrupts are off
        jmp     2b
triple: lidt    no_idt
        ud2
spin:   jmp     spin
nowhere:
        mov     $NOWHERE, %eax
        jmp     *%eax

pci:    mov     %ebx, %eax                      # register ebx of bus 0
        or      $0x80000000, %eax
        mov     $0xcf8, %dx
        out     %eax, %dx
        mov     $0xcfc, %dx
        in      %dx, %eax
        ret

print:  mov     (%esi), %al
        inc     %esi
        test    %al, %al
        jz      1f
        mov     $COM1, %dx
        out     %al, %dx
        jmp     print
1:      ret

        .align  8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              # 8: code, flat
        .quad   0x00cf93000000ffff              # 16: data, flat
gdt_register:
        .word   23
        .long   gdt
no_idt: .word   0
        .long   0
idt_register:
        .word   (PRESS + 1) * 8 - 1
        .long   idt
up:     .asciz  "TINY-UP\r\n"
pressed:
        .asciz  "POWERBTN\r\n"
keyboard:
        .byte   0
has_pci:
        .byte   0
        .align  8
idt:    .fill   TICK, 8, 0
        .word   0, 8, 0x8e00, 0
        .word   0, 8, 0x8e00, 0
        .fill   256, 1, 0
stack:  .long   0
