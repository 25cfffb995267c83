// JSON, read by the parser in TVM's FFI library, with every access checked.
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/extra/json.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace awq {

// A value and where it stands; an access that does not fit is a bundle error that says so.
class Json {
 public:
  // name: of the file, for messages.
  static Json parse(const std::string& text, const std::string& name);

  bool is_null() const { return value_ == nullptr; }
  bool is_object() const { return value_.as<tvm::ffi::json::Object>().has_value(); }
  bool is_array() const { return value_.as<tvm::ffi::json::Array>().has_value(); }
  bool is_text() const { return value_.as<tvm::ffi::String>().has_value(); }
  // A member of an object; there must be one.
  Json at(const std::string& key) const;
  // A member of an object, null where there is none.
  Json find(const std::string& key) const;
  // The members of an object, in the order of their keys.
  std::vector<std::pair<std::string, Json>> members() const;
  std::vector<Json> elements() const;
  std::string text() const;
  int64_t integer(int64_t least, int64_t most) const;
  double number() const;
  bool boolean() const;
  // An object of integers, and a list of pairs of texts or of texts "a b": read at once, as they are long.
  std::unordered_map<std::string, int32_t> ids() const;
  std::vector<std::pair<std::string, std::string>> pairs() const;
  // A list of pairs of a text and a number.
  std::vector<std::pair<std::string, double>> scores() const;
  // For members that may be absent.
  std::string text_or(const std::string& key, const std::string& otherwise) const;
  bool boolean_or(const std::string& key, bool otherwise) const;
  const std::string& where() const { return where_; }
  // An error about this value.
  [[noreturn]] void refuse(const std::string& why) const;

 private:
  Json(tvm::ffi::json::Value value, std::string where) : value_(std::move(value)), where_(std::move(where)) {}

  tvm::ffi::json::Value value_;
  std::string where_;
};

}  // namespace awq
