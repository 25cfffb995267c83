// Threads of a block as stackful fibers; a switch saves the registers that a call must keep, and makes no system call.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__)

struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void awq_emulate_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type awq_emulate_switch,@function
awq_emulate_switch:
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
.size awq_emulate_switch,.-awq_emulate_switch
)");

inline void switch_to(Context& from, Context& to) { awq_emulate_switch(&from.stack_pointer, to.stack_pointer); }

inline void prepare(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  // The entry is "returned" to with the stack as after a call: 8 bytes off a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + bytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}

#else

struct Context {
  ucontext_t context;
};

inline void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

inline void prepare(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

#endif

}  // namespace emulator
