{{/* What a proxy's container and a sidecar's share. */}}
{{- define "sidecar-gateway.container" -}}
image: {{ include "sidecar-gateway.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [sidecar, serve, --config, /etc/sidecar/sidecar.yaml]
workingDir: /data
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $secret := include "sidecar-gateway.secretName" . }}
{{- if or $secret .Values.extraEnvFrom }}
envFrom:
  {{- if $secret }}
  - secretRef:
      name: {{ $secret }}
  {{- end }}
  {{- with .Values.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
ports:
  - name: {{ ternary "sidecar" "http" (eq .Values.mode "sidecar") }}
    containerPort: {{ int .Values.config.server.port }}
    protocol: TCP
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: sidecar-config
    mountPath: /etc/sidecar/sidecar.yaml
    subPath: sidecar.yaml  # not updated in place: all workers of a pod read the same text
    readOnly: true
  - name: sidecar-data
    mountPath: /data
  - name: sidecar-tmp
    mountPath: /tmp
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Arguments: root, path, probe. A loopback listener is asked from inside the container, for the kubelet cannot. */}}
{{- define "sidecar-gateway.probe" -}}
{{- if include "sidecar-gateway.isLoopback" .root -}}
exec:
  command:
    - python
    - -ISc
    - >-
      import socket as s; c = s.create_connection(("{{ trimAll "[]" (include "sidecar-gateway.host" .root) }}", {{ int .root.Values.config.server.port }}), 2);
      c.sendall(b"GET {{ .path }} HTTP/1.0\r\n\r\n"); raise SystemExit(b" 200 " not in c.recv(32))
{{- else -}}
httpGet:
  path: {{ .path }}
  port: {{ int .root.Values.config.server.port }}
{{- end }}
{{ toYaml .probe }}
{{- end -}}

{{/* The volumes without /data's, which a StatefulSet claims. */}}
{{- define "sidecar-gateway.volumes" -}}
- name: sidecar-config
  configMap:
    name: {{ include "sidecar-gateway.fullname" . }}
- name: sidecar-tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
For other charts, with this one as a dependency in mode sidecar: a native sidecar, to stand in `initContainers`.
  {{ include "sidecar-gateway.sidecarContainer" (index .Subcharts "sidecar-gateway") }}
Its start-up probe holds the app's containers back until the gateway is ready.
*/}}
{{- define "sidecar-gateway.sidecarContainer" -}}
- name: sidecar-gateway
  restartPolicy: Always
  {{- include "sidecar-gateway.container" . | nindent 2 }}
  startupProbe:
    {{- include "sidecar-gateway.probe" (dict "root" . "path" "/readyz" "probe" .Values.probes.startup) | nindent 4 }}
  livenessProbe:
    {{- include "sidecar-gateway.probe" (dict "root" . "path" "/healthz" "probe" .Values.probes.liveness) | nindent 4 }}
{{- end -}}

{{/* For other charts: the volumes that go with `sidecar-gateway.sidecarContainer`. */}}
{{- define "sidecar-gateway.sidecarVolumes" -}}
{{ include "sidecar-gateway.volumes" . }}
- name: sidecar-data
  emptyDir: {}
{{- end -}}
