/* Starts a program on the board mps2-an386 of QEMU, and lets it print and exit by semihosting. */
#include <stdint.h>

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;

int main(void);
void print(const char *text);
static void reset(void);
static void fault(void);

/* The initial stack pointer, then the handlers of reset, NMI, and the four faults. */
__attribute__((section(".vectors"), used)) static void *const vectors[7] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};

static void semihost(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void print(const char *text)
{
    semihost(0x04, text); /* SYS_WRITE0 */
}

static void stop(uint32_t status)
{
    const uint32_t block[2] = {0x20026, status}; /* ADP_Stopped_ApplicationExit */
    semihost(0x20, block);                       /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

static void reset(void)
{
    uint32_t *from = &data_load;
    *(volatile uint32_t *)0xe000ed88 |= 0xf00000; /* switches the floating-point unit on */
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = &data_start; to < &data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = &bss_start; to < &bss_end; to++) {
        *to = 0;
    }
    stop((uint32_t)main());
}

static void fault(void)
{
    stop(3);
}
