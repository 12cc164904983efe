# Configures, builds and runs a consumer: SOURCE, BINARY, GENERATOR, OPTIONS (of the configuration).
# In processes of their own: what CMake does while it looks for a compiler switches ccache off for
# the rest of its process, and `ctest --build-and-test` would build in that.
set(strict COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} -G ${GENERATOR} -S ${SOURCE} -B ${BINARY} ${OPTIONS} ${strict})
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BINARY} ${strict})
execute_process(COMMAND ${BINARY}/consumer ${strict})
