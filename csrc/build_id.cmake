# LLAMAFORGE_BUILD_ID: a hash of what the addon and its plugins must agree on, the version and every shared header. Both
# builds include this file, and configure again when one of those files changes.
get_filename_component(llamaforge_root ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
file(READ ${llamaforge_root}/package.json package_json)
string(JSON llamaforge_version GET "${package_json}" version)
file(GLOB shared_headers LIST_DIRECTORIES false ${llamaforge_root}/csrc/runtime/*.h ${llamaforge_root}/csrc/ops/*
  ${llamaforge_root}/csrc/comm/transport.h)
list(SORT shared_headers)
set(shared_text "${llamaforge_version}")
foreach(header ${shared_headers})
  file(SHA256 ${header} header_hash)
  string(APPEND shared_text " ${header_hash}")
endforeach()
string(SHA256 shared_hash "${shared_text}")
string(SUBSTRING ${shared_hash} 0 16 LLAMAFORGE_BUILD_ID)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${shared_headers} ${llamaforge_root}/package.json)
