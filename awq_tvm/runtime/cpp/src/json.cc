#include "json.h"

#include <algorithm>

#include "error.h"

namespace awq {
namespace {

namespace ffi = tvm::ffi;

// The parser descends once for each bracket: without a bound, a file of brackets would overflow the stack.
constexpr int kMaxDepth = 64;

bool too_deep(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

std::string string_of(const ffi::String& text) { return std::string(text.data(), text.size()); }

}  // namespace

Json Json::parse(const std::string& text, const std::string& name) {
  if (too_deep(text)) throw bundle_error("A file is not the JSON it should be.", name, "it is nested too deeply");
  ffi::String error;
  ffi::json::Value value = ffi::json::Parse(ffi::String(text), &error);
  if (error.size()) throw bundle_error("A file is not JSON.", name, string_of(error).substr(0, 200));
  return Json(std::move(value), name);
}

void Json::refuse(const std::string& why) const {
  throw bundle_error("A file of the bundle does not fit its schema.", where_, why);
}

Json Json::at(const std::string& key) const {
  Json found = find(key);
  if (found.is_null()) found.refuse("it is missing");
  return found;
}

Json Json::find(const std::string& key) const {
  const auto object = value_.as<ffi::json::Object>();
  if (!object) refuse("it is no object");
  const auto found = object->find(ffi::String(key));
  return Json(found == object->end() ? ffi::json::Value(nullptr) : (*found).second, where_ + ", " + key);
}

std::vector<std::pair<std::string, Json>> Json::members() const {
  const auto object = value_.as<ffi::json::Object>();
  if (!object) refuse("it is no object");
  std::vector<std::pair<std::string, Json>> members;
  for (const auto& [key, value] : *object) {
    const std::string name = string_of(key.cast<ffi::String>());
    members.emplace_back(name, Json(value, where_ + ", " + name));
  }
  std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return members;
}

std::vector<Json> Json::elements() const {
  const auto array = value_.as<ffi::json::Array>();
  if (!array) refuse("it is no list");
  std::vector<Json> elements;
  elements.reserve(array->size());
  for (const auto& value : *array) elements.push_back(Json(value, where_));
  return elements;
}

std::string Json::text() const {
  const auto text = value_.as<ffi::String>();
  if (!text) refuse("it is no text");
  return string_of(*text);
}

int64_t Json::integer(int64_t least, int64_t most) const {
  const auto number = value_.type_index() == ffi::TypeIndex::kTVMFFIInt ? value_.as<int64_t>() : std::nullopt;
  if (!number) refuse("it is no integer");
  if (*number < least || *number > most) {
    refuse("found " + std::to_string(*number) + ", legal is " + std::to_string(least) + " to " + std::to_string(most));
  }
  return *number;
}

double Json::number() const {
  const auto number = value_.as<double>();
  if (!number) refuse("it is no number");
  return *number;
}

bool Json::boolean() const {
  const auto flag = value_.type_index() == ffi::TypeIndex::kTVMFFIBool ? value_.as<bool>() : std::nullopt;
  if (!flag) refuse("it is neither true nor false");
  return *flag;
}

std::unordered_map<std::string, int32_t> Json::ids() const {
  const auto object = value_.as<ffi::json::Object>();
  if (!object) refuse("it is no object");
  std::unordered_map<std::string, int32_t> found;
  found.reserve(object->size());
  for (const auto& [key, value] : *object) {
    const auto id = value.template as<int64_t>();
    if (!id || *id < 0 || *id > INT32_MAX) refuse("an id is no integer of 31 bits");
    found.emplace(string_of(key.template cast<ffi::String>()), int32_t(*id));
  }
  return found;
}

std::vector<std::pair<std::string, std::string>> Json::pairs() const {
  const auto array = value_.as<ffi::json::Array>();
  if (!array) refuse("it is no list");
  std::vector<std::pair<std::string, std::string>> found;
  found.reserve(array->size());
  for (const auto& value : *array) {
    if (const auto text = value.template as<ffi::String>()) {
      const std::string both = string_of(*text);
      const std::size_t blank = both.find(' ');
      if (blank == std::string::npos) refuse("a pair without a blank");
      found.emplace_back(both.substr(0, blank), both.substr(blank + 1));
      continue;
    }
    const auto pair = value.template as<ffi::json::Array>();
    if (!pair || pair->size() != 2) refuse("what should be a pair is none");
    const auto left = (*pair)[0].template as<ffi::String>(), right = (*pair)[1].template as<ffi::String>();
    if (!left || !right) refuse("a pair that is not of texts");
    found.emplace_back(string_of(*left), string_of(*right));
  }
  return found;
}

std::vector<std::pair<std::string, double>> Json::scores() const {
  const auto array = value_.as<ffi::json::Array>();
  if (!array) refuse("it is no list");
  std::vector<std::pair<std::string, double>> found;
  found.reserve(array->size());
  for (const auto& value : *array) {
    const auto pair = value.template as<ffi::json::Array>();
    if (!pair || pair->size() != 2) refuse("what should be a pair is none");
    const auto name = (*pair)[0].template as<ffi::String>();
    const auto score = (*pair)[1].template as<double>();
    if (!name || !score) refuse("a pair that is not of a text and a number");
    found.emplace_back(string_of(*name), *score);
  }
  return found;
}

std::string Json::text_or(const std::string& key, const std::string& otherwise) const {
  const Json found = find(key);
  return found.is_null() ? otherwise : found.text();
}

bool Json::boolean_or(const std::string& key, bool otherwise) const {
  const Json found = find(key);
  return found.is_null() ? otherwise : found.boolean();
}

}  // namespace awq
