// Base64 as token files write it (tiktoken's and ours): with padding, one spelling for each byte string.
#pragma once

#include <string>
#include <string_view>

namespace qt {

std::string to_base64(std::string_view bytes);

// Replaces `bytes`. Only what to_base64() writes is taken: padding where it belongs, no stray bits, and not
// nothing. False otherwise.
bool from_base64(std::string_view text, std::string& bytes);

}  // namespace qt
