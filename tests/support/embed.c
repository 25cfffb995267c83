/* A C program that embeds the runner: embed BUNDLE PROMPT. Standard C and awq_tvm.h alone. */
#include <awq_tvm.h>
#include <stdio.h>

int main(int argc, char **argv) {
  awq_tvm *model = NULL;
  awq_tvm_piece piece;
  int round, status = AWQ_TVM_USAGE, tokens = 0;
  if (argc == 3) status = awq_tvm_load(argv[1], 1, &model);
  /* Twice: an answer may be left for another one. */
  for (round = 0; round < 2 && status <= AWQ_TVM_END; ++round) {
    status = awq_tvm_prompt(model, argv[2], 12);
    while (status == AWQ_TVM_OK && (round == 1 || tokens < 5)) {
      status = awq_tvm_next(model, &piece);
      tokens += status == AWQ_TVM_OK;
      if (round == 1 && status <= AWQ_TVM_END) fwrite(piece.text, 1, piece.length, stdout);
    }
  }
  if (status > AWQ_TVM_END) fprintf(stderr, "%s\n", awq_tvm_error());
  /* After the end there is nothing but the end, and nothing is loaded from where nothing is. */
  if (status == AWQ_TVM_END && (awq_tvm_next(model, &piece) != AWQ_TVM_END || piece.token != -1 || piece.length)) {
    status = 99;
  }
  awq_tvm_free(model);
  awq_tvm_free(NULL);
  if (status == AWQ_TVM_END && (awq_tvm_load("nowhere", 1, &model) != AWQ_TVM_BUNDLE || model)) status = 98;
  return status == AWQ_TVM_END ? 0 : status;
}
