// On/off switches in the environment, such as LLAMAFORGE_POISON=1.
#pragma once

#include <cstdlib>
#include <string_view>

#include "runtime/error.h"

namespace llamaforge {

// Whether a switch is on: 1 is on; 0, unset or empty is off. Throws ERR_ARGUMENT for anything else,
// so that "true" or a typing error does not pass for off.
inline bool is_on(const char* variable) {
  const char* value = std::getenv(variable);
  const std::string_view text = value ? value : "";
  if (text.empty() || text == "0") return false;
  if (text == "1") return true;
  throw Error("ERR_ARGUMENT", format("{} is \"{}\": expected 0 or 1", variable, text));
}

}  // namespace llamaforge
