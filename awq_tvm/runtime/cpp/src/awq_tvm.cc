// The C interface: no exception leaves it.
#include "awq_tvm.h"

#include <tvm/ffi/error.h>

#include <new>

#include "error.h"
#include "model.h"

struct awq_tvm {
  awq::Model model;
  std::string text;
};

namespace {

thread_local std::string last_error;

template <typename Body>
int guarded(Body body) {
  try {
    return body();
  } catch (const awq::Error& error) {
    last_error = error.what();
    return error.status;
  } catch (const std::bad_alloc&) {
    last_error = "There is not enough memory.";
    return AWQ_TVM_RESOURCE;
  } catch (const std::exception& error) {
    // TVM's own: a library that it cannot load or run.
    last_error = std::string("The bundle cannot be run.\n  why: ") + error.what();
    return AWQ_TVM_BUNDLE;
  }
}

int missing(const char* what) {
  last_error = std::string(what) + " must not be NULL.";
  return AWQ_TVM_USAGE;
}

}  // namespace

int awq_tvm_load(const char* bundle, int threads, awq_tvm** model) {
  if (!model) return missing("model");
  *model = nullptr;
  if (!bundle) return missing("bundle");
  return guarded([&] {
    *model = new awq_tvm{awq::Model(bundle, threads), {}};
    return AWQ_TVM_OK;
  });
}

int awq_tvm_prompt(awq_tvm* model, const char* text, int max_tokens) {
  if (!model || !text) return missing("model and text");
  return guarded([&] {
    model->model.start(model->model.encode(text), max_tokens);
    return AWQ_TVM_OK;
  });
}

int awq_tvm_prompt_ids(awq_tvm* model, const int32_t* ids, size_t count, int max_tokens) {
  if (!model || (!ids && count)) return missing("model and ids");
  return guarded([&] {
    model->model.start(std::vector<int32_t>(ids, ids + count), max_tokens);
    return AWQ_TVM_OK;
  });
}

int awq_tvm_next(awq_tvm* model, awq_tvm_piece* piece) {
  if (!model || !piece) return missing("model and piece");
  *piece = {-1, "", 0};
  return guarded([&] {
    piece->token = model->model.next(&model->text);
    piece->text = model->text.c_str();
    piece->length = model->text.size();
    return piece->token < 0 ? AWQ_TVM_END : AWQ_TVM_OK;
  });
}

const char* awq_tvm_error(void) { return last_error.c_str(); }

void awq_tvm_free(awq_tvm* model) { delete model; }
