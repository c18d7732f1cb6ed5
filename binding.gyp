{
  # CMakeLists.txt is the real build. This file only lets node-gyp, and so prebuildify, start it.
  "targets": [
    {
      "target_name": "llamaforge",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/llamaforge.node"],
          "action": ["npx", "cmake-js", "build"]
        }
      ]
    }
  ]
}
