// The runner's tokenizer by itself: tokenizer_check TOKENIZER_JSON, then a line a question on standard input.
//
// "e HEX" is a text in UTF-8: its token ids. "d ID ID ...": the pieces of the answer in hexadecimal, one a token and the
// last one for its end, each behind a full stop.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "detokenizer.h"
#include "tokenizer.h"

namespace {

void print_piece(const std::string& piece) {
  std::printf(".");
  for (const unsigned char byte : piece) std::printf("%02x", byte);
  std::printf(" ");
}

}  // namespace

int main(int, char** argv) try {
  std::ifstream file(argv[1], std::ios::binary);
  const awq::Json json = awq::Json::parse(std::string(std::istreambuf_iterator<char>(file), {}), "tokenizer.json");
  const awq::Tokenizer tokenizer(json);
  const awq::Decoding decoding(json.find("decoder"));
  for (std::string line; std::getline(std::cin, line); std::printf("\n")) {
    std::istringstream words(line.substr(1));
    if (line[0] == 'e') {
      std::string hex, text;
      words >> hex;
      for (std::size_t i = 0; i + 1 < hex.size(); i += 2) text += char(std::stoi(hex.substr(i, 2), nullptr, 16));
      for (const int32_t id : tokenizer.encode(text)) std::printf("%d ", id);
    } else {
      awq::Detokenizer detokenizer(tokenizer, decoding);
      for (int32_t id; words >> id;) print_piece(detokenizer.push(id));
      print_piece(detokenizer.finish());
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
