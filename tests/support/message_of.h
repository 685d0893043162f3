// The message of an error, for tests.
#pragma once

#include <string>

namespace qt::test {

// Of the error that `body` throws; "" if it throws none of this kind.
template <class Kind, class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Kind& e) {
    return e.what();
  }
  return {};
}

}  // namespace qt::test
