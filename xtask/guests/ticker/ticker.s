# A guest of one sector, for machines that are emulated twice, where Linux takes a quarter of an hour
# to boot. It writes a digit to its screen about once a second, and powers off when its button is
# pressed. It leans on what SeaBIOS sets up: text mode, the tick count, and the ACPI ports at 0x600.

        .code16
        .set TICKS, 0x46c               # the BIOS' count, 18 in a second
        .set PM_STATUS, 0x600           # bit 8: the button was pressed
        .set PM_ENABLE, 0x602           # bit 8: let it be noted
        .set PM_CONTROL, 0x604
        .set SOFT_OFF, 0x2000

        .globl _start
_start:
        ljmp    $0, $begin
begin:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        # Its interrupt has no handler here; the button is looked at with each tick.
        cli
        movw    $PM_ENABLE, %dx
        movw    $0x100, %ax
        outw    %ax, %dx
        sti
        movb    $'0', %cl
        xorw    %si, %si
wait:
        hlt
        movw    $PM_STATUS, %dx
        inw     %dx, %ax
        testb   $1, %ah
        jnz     off
        movw    TICKS, %ax
        shrw    $4, %ax
        cmpw    %si, %ax
        je      wait
        movw    %ax, %si
        movb    $0x0e, %ah
        movb    %cl, %al
        movw    $7, %bx
        pushw   %cx
        int     $0x10
        popw    %cx
        incb    %cl
        cmpb    $'9' + 1, %cl
        jne     wait
        movb    $'0', %cl
        jmp     wait
off:
        movw    $PM_CONTROL, %dx
        movw    $SOFT_OFF, %ax
        outw    %ax, %dx
        jmp     wait

        .org    510
        .word   0xaa55
