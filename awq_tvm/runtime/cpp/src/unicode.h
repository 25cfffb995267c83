// UTF-8, general categories and canonical composition. The tables are Python's, see unicode_table.py.
#pragma once

#include <cstdint>
#include <string>

namespace awq {

// General categories, in bits of a mask.
enum Category : uint32_t {
  kLu = 1u << 0, kLl = 1u << 1, kLt = 1u << 2, kLm = 1u << 3, kLo = 1u << 4,
  kMn = 1u << 5, kMc = 1u << 6, kMe = 1u << 7, kNd = 1u << 8,
  kNl = 1u << 9, kNo = 1u << 10, kPc = 1u << 11, kPd = 1u << 12, kPs = 1u << 13, kPe = 1u << 14,
  kPi = 1u << 15, kPf = 1u << 16, kPo = 1u << 17, kSm = 1u << 18, kSc = 1u << 19, kSk = 1u << 20, kSo = 1u << 21,
  kZs = 1u << 22, kZl = 1u << 23, kZp = 1u << 24, kCc = 1u << 25, kCf = 1u << 26, kCs = 1u << 27, kCo = 1u << 28,
  kCn = 1u << 29
};

// The mask of a category's name, "L" or "Lu"; 0 where there is none.
uint32_t category_mask(const std::string& name);
uint32_t category_of(char32_t point);
bool is_space(char32_t point);

// Code points of UTF-8; false where it is none.
bool decode_utf8(const std::string& text, std::u32string* points);
std::string encode_utf8(const std::u32string& points);
// Bytes of the character that starts at text[start]; 0 where the text ends within it; where there is none, minus the
// bytes that one replacement character stands for.
int utf8_length(const std::string& text, std::size_t start);

std::u32string compose(const std::u32string& text);  // to NFC

}  // namespace awq
