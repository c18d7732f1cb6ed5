#include "napi/op_binding.h"

#include <cctype>

namespace llamaforge {

namespace {

std::string camel_case(const std::string& name) {
  std::string result;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '_' && i + 1 < name.size()) {
      result += static_cast<char>(std::toupper(static_cast<unsigned char>(name[++i])));
    } else {
      result += name[i];
    }
  }
  return result;
}

template <class Pointer>
struct Signature;
template <class Function>
struct Signature<Function OpTable::*> {
  using type = std::remove_pointer_t<Function>;
};

template <auto Member>
void add(Napi::Env env, Napi::Object target, const char* name) {
  // Leaked on purpose, once per op and process: errors of queued work use the name until the
  // process ends.
  static const std::string* js_name = new std::string(camel_case(name));
  using Binding = OpBinding<Member, typename Signature<decltype(Member)>::type>;
  target.Set(*js_name, Napi::Function::New(env, Binding::call, js_name->c_str(),
                                           const_cast<char*>(js_name->c_str())));
}

}  // namespace

void init_ops(Napi::Env env, Napi::Object target) {
#define LF_OP(name, signature) add<&OpTable::name>(env, target, #name);
#include "ops/ops.def"
#undef LF_OP
}

}  // namespace llamaforge
