// Fibres: a context is a stack and the place where it stopped. Written by hand for x86-64 and aarch64, because the
// system's swapcontext makes a system call (235 ns against 13); ucontext elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(EMU_UCONTEXT)

namespace emu {

struct Context {
    void* sp = nullptr;
};

extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save, void* to);

inline void switch_context(Context& from, Context& to) {
    emu_switch(&from.sp, to.sp);
}

/// Makes `context` start in `entry`, which never returns, on the stack that ends at `top` (16-byte aligned).
inline void prepare_context(Context& context, char* top, size_t, void (*entry)()) {
    uintptr_t* sp = reinterpret_cast<uintptr_t*>(top);
#if defined(__x86_64__)
    *--sp = 0;  // entry's return address, and its alignment: rsp + 8 is a multiple of 16
    *--sp = reinterpret_cast<uintptr_t>(entry);
    sp -= 6;
#else
    sp -= 20;  // d8-d15, x19-x28, x29, x30
    sp[19] = reinterpret_cast<uintptr_t>(entry);
#endif
    context.sp = sp;
}

}  // namespace emu

#ifdef EMU_DEFINE_SWITCH
#if defined(__x86_64__)
// Callee-saved registers of the System V ABI. It ends with a return, not a jump: fibres wait in the same place as a
// rule, so that the return predictor is right about this return and the ones behind it.
asm(R"(
.text
.p2align 4
.hidden emu_switch
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");
#else
asm(R"(
.text
.p2align 4
.hidden emu_switch
.globl emu_switch
.type emu_switch, %function
emu_switch:
    sub sp, sp, #160
    stp d8, d9, [sp, #0]
    stp d10, d11, [sp, #16]
    stp d12, d13, [sp, #32]
    stp d14, d15, [sp, #48]
    stp x19, x20, [sp, #64]
    stp x21, x22, [sp, #80]
    stp x23, x24, [sp, #96]
    stp x25, x26, [sp, #112]
    stp x27, x28, [sp, #128]
    stp x29, x30, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp d8, d9, [sp, #0]
    ldp d10, d11, [sp, #16]
    ldp d12, d13, [sp, #32]
    ldp d14, d15, [sp, #48]
    ldp x19, x20, [sp, #64]
    ldp x21, x22, [sp, #80]
    ldp x23, x24, [sp, #96]
    ldp x25, x26, [sp, #112]
    ldp x27, x28, [sp, #128]
    ldp x29, x30, [sp, #144]
    add sp, sp, #160
    ret
.size emu_switch, .-emu_switch
)");
#endif
#endif

#else

#include <ucontext.h>

namespace emu {

struct Context {
    ucontext_t state;
};

inline void switch_context(Context& from, Context& to) {
    swapcontext(&from.state, &to.state);
}
inline void prepare_context(Context& context, char* top, size_t bytes, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = top - bytes;
    context.state.uc_stack.ss_size = bytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

}  // namespace emu

#endif
