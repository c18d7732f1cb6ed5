// Checks whether the system lets this process start threads, because OpenMP ends the process if it
// does not.
#pragma once

namespace llamaforge {

// Starts that many threads at once and ends them again. Throws ERR_RESOURCE if the system refuses
// one; `what` names them in the message.
void require_threads(int count, const char* what);

}  // namespace llamaforge
