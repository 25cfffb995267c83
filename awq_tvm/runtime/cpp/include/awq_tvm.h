/* Runs an awq_tvm bundle without Python: load it, give it a prompt, take tokens one by one.
 *
 *     awq_tvm *model;
 *     awq_tvm_piece piece;
 *     int status = awq_tvm_load("model.bundle", 0, &model);
 *     if (status == AWQ_TVM_OK) status = awq_tvm_prompt(model, "Once upon a time", 64);
 *     while (status == AWQ_TVM_OK) {
 *       status = awq_tvm_next(model, &piece);
 *       if (status <= AWQ_TVM_END) fwrite(piece.text, 1, piece.length, stdout);
 *     }
 *     if (status > AWQ_TVM_END) fprintf(stderr, "%s\n", awq_tvm_error());
 *     awq_tvm_free(model);
 *
 * Text is UTF-8. The most likely token is taken each time, of equal ones the lowest id. A model is for one thread at a
 * time; TVM's pool of threads is one for the process, so the first model loaded decides how many it has.
 */
#ifndef AWQ_TVM_H_
#define AWQ_TVM_H_

#include <stddef.h>
#include <stdint.h>

#if defined(AWQ_TVM_BUILD) && defined(__GNUC__)
#define AWQ_TVM_API __attribute__((visibility("default")))
#else
#define AWQ_TVM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What every function returns. From 2 on it is an error, with the number that the command line exits with. */
enum {
  AWQ_TVM_OK = 0,
  AWQ_TVM_END = 1,         /* of awq_tvm_next: the answer is over */
  AWQ_TVM_USAGE = 2,       /* an argument that cannot be meant */
  AWQ_TVM_UNSUPPORTED = 4, /* well-formed, but not for this runner */
  AWQ_TVM_TARGET = 5,      /* a bundle for another machine */
  AWQ_TVM_BUNDLE = 6,      /* a bundle that is damaged or of another version */
  AWQ_TVM_RESOURCE = 7     /* too little memory, or a file that cannot be read */
};

typedef struct awq_tvm awq_tvm;

/* One token and the text that it made certain. */
typedef struct {
  int32_t token;    /* its id; -1 where the answer is over */
  const char *text; /* valid until the next call, ends with a zero byte, often empty */
  size_t length;    /* bytes of text */
} awq_tvm_piece;

/* Verify a bundle in full, then load it.
 *
 * bundle: its directory. threads: of the CPU, 1 to 1024; 0 for one a processor. model: where to put the model; NULL is
 * put there if there is an error. */
AWQ_TVM_API int awq_tvm_load(const char *bundle, int threads, awq_tvm **model);

/* Start an answer to a text, in place of the one under way; a control token spelled out in it is ordinary text.
 *
 * max_tokens: most tokens to generate; 0 for as many as the context holds, 256 at most. */
AWQ_TVM_API int awq_tvm_prompt(awq_tvm *model, const char *text, int max_tokens);

/* The same for a prompt given as tokens. The answer comes as tokens without text, but where awq_tvm_prompt was called
 * before: that reads the tokenizer. */
AWQ_TVM_API int awq_tvm_prompt_ids(awq_tvm *model, const int32_t *ids, size_t count, int max_tokens);

/* The next token of the answer. AWQ_TVM_END comes after the last one, with the text that was still held back. */
AWQ_TVM_API int awq_tvm_next(awq_tvm *model, awq_tvm_piece *piece);

/* What went wrong in the last call on this thread that returned an error: what, where, why and how to fix it. */
AWQ_TVM_API const char *awq_tvm_error(void);

/* Free a model; NULL is allowed. */
AWQ_TVM_API void awq_tvm_free(awq_tvm *model);

#ifdef __cplusplus
}
#endif

#endif /* AWQ_TVM_H_ */
